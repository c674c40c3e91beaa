# Adapts the stock ResNet-50 to smaller sizes: each scale gets normalization parameters of
# its own, and weight and bias of those of the smaller scales train. The output at 224 px
# stays the same, to the bit. tools/adapt.py writes such a config for any network, and sets
# load_from to a checkpoint with statistics that it has estimated at each size.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
model = dict(_delete_=True, type='WithSSBN', scales=(224, 192, 160, 128), model=_base_.model)
load_from = ('https://download.openmmlab.com/mmclassification/v0/resnet/'
             'resnet50_8xb32_in1k_20210831-ea4938fc.pth')
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=0.03, weight_decay=0.0))
param_scheduler = [dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=50),
                   dict(type='CosineAnnealingLR', T_max=2, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=2, val_interval=2)
val_cfg = dict(type='ScalesValLoop')
auto_scale_lr = dict(enable=False)
randomness = dict(seed=0)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='SCTLossHook', adapt=True)]
