# Adapts the stock ResNet-50 to smaller sizes: each of them gets normalization parameters and
# a private change of rank 8 of the weights, which train. The output at 224 px stays the same,
# to the bit. tools/adapt.py writes such a config for any network, chooses learning rate and
# statistics on held-out images, and keeps of each size only what gained on them. Not run; the
# learning rate is the one that it chose for EfficientNet-Lite0 and -Lite1.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
model = dict(_delete_=True, type='WithSSBN', scales=(224, 192, 160, 128), rank=8,
             model=_base_.model)
load_from = ('https://download.openmmlab.com/mmclassification/v0/resnet/'
             'resnet50_8xb32_in1k_20210831-ea4938fc.pth')
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=0.003, weight_decay=0.0))
param_scheduler = [dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=50),
                   dict(type='CosineAnnealingLR', T_max=2, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=2, val_interval=2)
val_cfg = dict(type='ScalesValLoop')
auto_scale_lr = dict(enable=False)
randomness = dict(seed=0)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='SCTLossHook', adapt=True)]
