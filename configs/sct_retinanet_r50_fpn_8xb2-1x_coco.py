# mmdet freezes the statistics of the stock backbone (norm_eval) and its first
# stages, since 2 pictures a GPU are few. Frozen rows would stay the same for all
# scales: here they train, over the pictures of all GPUs.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/sct-det.py']
model = dict(backbone=dict(
    norm_cfg=dict(type='SyncSSBN', scales=(800, 640, 480)),
    norm_eval=False, frozen_stages=-1))
val_cfg = dict(type='ScalesValLoop')
