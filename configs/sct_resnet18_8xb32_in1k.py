# sct_resnet50_8xb32_in1k.py with a ResNet-18. Not run.
_base_ = './sct_resnet50_8xb32_in1k.py'
model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
