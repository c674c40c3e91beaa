# The scale is the shorter edge of the box, 192 of 256x192. ResNet halves it five times, so
# that both edges must be multiples of 32 px at each scale: 128x96 is the next one. Not run.
_base_ = ['mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
model = dict(_delete_=True, type='WithSSBN', scales=(192, 96), model=_base_.model)
custom_hooks = [*_base_.custom_hooks, dict(type='SCTLossHook')]
val_cfg = dict(type='ScalesValLoop')
default_hooks = dict(checkpoint=dict(save_best='192/coco/AP'))
