_base_ = './_base_/resnet50_8xb32_in1k.py'
