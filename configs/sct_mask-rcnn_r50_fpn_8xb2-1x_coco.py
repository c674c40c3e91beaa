# mmdet freezes the statistics of the stock backbone (norm_eval) and its first stages,
# since a GPU has only 2 images. Frozen statistics would be the same for all scales, so here
# they train, synchronised over all GPUs. 20 epochs cost what 12 at 800 px cost. Not run.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/sct-det.py']
model = dict(backbone=dict(
    norm_cfg=dict(type='SyncSSBN', scales=(800, 736, 672, 608, 544, 480)),
    norm_eval=False, frozen_stages=-1))
train_cfg = dict(max_epochs=20, val_interval=4)
val_cfg = dict(type='ScalesValLoop')
param_scheduler = [_base_.param_scheduler[0], {
    **_base_.param_scheduler[1], 'end': 20, 'milestones': [14, 18]}]
