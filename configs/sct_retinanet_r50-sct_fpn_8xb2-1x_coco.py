# Starts from a classifier trained by sct_resnet50_8xb32_in1k.py: each scale of the
# detector takes the normalization parameters of the classifier's scale of the same rank
# (224, 192, 160, 128). Their statistics differ already, so mmdet's norm_eval=True stays, and
# gamma and beta are private. Not run.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/sct.py']
model = dict(backbone=dict(
    norm_cfg=dict(type='SSBN', scales=(800, 672, 576, 448)),
    init_cfg=dict(type='Pretrained', prefix='backbone.',
                  checkpoint='work_dirs/sct_resnet50_8xb32_in1k/epoch_171.pth')))
custom_hooks = [_base_.custom_hooks[0], {
    **_base_.custom_hooks[1], 'scales_per_step': 1, 'between': 0.5}]
val_cfg = dict(type='ScalesValLoop')
