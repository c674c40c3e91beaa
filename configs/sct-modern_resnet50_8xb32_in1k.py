# sct_resnet50_8xb32_in1k.py with label smoothing, warm-up and cosine, less weight decay,
# none for norms and biases, and an average of the weights over the steps. Not run.
_base_ = './sct_resnet50_8xb32_in1k.py'
model = dict(head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
optim_wrapper = dict(
    optimizer=dict(weight_decay=5e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
warm_up = dict(type='LinearLR', start_factor=0.01, end=5, convert_to_iter_based=True)
cosine = dict(type='CosineAnnealingLR', begin=5, end=171, T_max=166, convert_to_iter_based=True)
param_scheduler = [warm_up, cosine]
ema = dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')
custom_hooks = [*_base_.custom_hooks, ema]
