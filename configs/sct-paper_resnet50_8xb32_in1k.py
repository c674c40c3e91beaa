# SCT as the paper describes it: each image at all scales in each step, private gamma
# and beta. 100 epochs cost what 257 at 224 px cost. Not run.
_base_ = './sct_resnet50_8xb32_in1k.py'
custom_hooks = [_base_.custom_hooks[0], dict(type='SCTLossHook', recipe='paper')]
train_cfg = dict(max_epochs=100)
param_scheduler = dict(milestones=[30, 60, 90])
