# The training schedule of the small classifiers: minutes on a CPU.
_base_ = ['mmpretrain::_base_/default_runtime.py']
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))
optim_wrapper = dict(optimizer=dict(
    type='AdamW', lr=1e-2, weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', T_max=3, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='ChannelsLastHook')]
