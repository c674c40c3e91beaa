# mmpretrain's ResNet, since that of mmaction2 copies pretrained tensors of equal shapes only,
# and so leaves the norms of a network with SSBN untrained, without a word. Not run.
_base_ = ['mmaction::recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
model = dict(backbone=dict(
    _delete_=True, type='mmpretrain.ResNet', depth=50,
    norm_cfg=dict(type='SSBN', scales=(224, 192, 160, 128)),
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')))
custom_hooks = [dict(type='SCTLossHook')]
val_cfg = dict(type='ScalesValLoop')
