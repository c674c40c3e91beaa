# Ablation: private gamma and beta, too.
_base_ = '../../../../configs/sct_resnet18_1xb128_glyphs.py'
custom_hooks = [*_base_.custom_hooks[:-1],
                {**_base_.custom_hooks[-1], 'shared_affine': False, 'backward': 'joint'}]
