# To compare with: for any size, gamma and beta shared by all scales.
_base_ = '../sct-any-size_resnet18_1xb128_fashion-mnist.py'
custom_hooks = [*_base_.custom_hooks[:-1], {**_base_.custom_hooks[-1], 'backward': 'joint'},
                dict(type='SharedAffineHook')]
