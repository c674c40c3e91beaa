# Ablation: sizes between the scales, with private gamma and beta.
_base_ = './sct-between_retinanet_r18_fpn_1xb8_fashion-det.py'
custom_hooks = [*_base_.custom_hooks[:2],
                {**_base_.custom_hooks[2], 'shared_affine': False}]
