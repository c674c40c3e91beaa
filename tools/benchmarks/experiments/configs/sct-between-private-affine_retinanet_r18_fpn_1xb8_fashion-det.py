# To compare with: between, each scale has its own gamma and beta too.
_base_ = './sct-between_retinanet_r18_fpn_1xb8_fashion-det.py'
custom_hooks = [*_base_.custom_hooks[:2],
                {**_base_.custom_hooks[2], 'backward': 'per_scale'}]
