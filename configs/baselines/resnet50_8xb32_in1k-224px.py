# To compare with: one network for one scale, as mmpretrain trains it.
_base_ = './sct-shared-bn_resnet50_8xb32_in1k.py'
custom_hooks = [dict(type='EpochSeedHook')]
val_cfg = dict(_delete_=True)
