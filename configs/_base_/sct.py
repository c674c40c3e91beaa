# Makes an experiment of any OpenMMLab project an SCT experiment, together with SSBN.
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='SCTLossHook')]
