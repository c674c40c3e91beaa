# What makes an experiment of any OpenMMLab project an SCT experiment.
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='SCTLossHook')]
