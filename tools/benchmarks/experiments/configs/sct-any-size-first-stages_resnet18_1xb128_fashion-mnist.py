# Ablation: private statistics in the stem and the first two stages only.
_base_ = '../../../../configs/sct-any-size_resnet18_1xb128_fashion-mnist.py'
custom_imports = dict(imports=['sct_mm', 'tools.benchmarks.experiments.shared_bn'])
model = dict(_delete_=True, type='WithSharedBN', model=_base_.model,
             shared=['backbone.layer3', 'backbone.layer4'])
