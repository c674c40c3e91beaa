# Baseline: a single-scale network, trained as mmpretrain trains it at 224. At the
# other scales every resize and crop changes by the same ratio.
_base_ = '../sct-shared-bn_resnet50_8xb32_in1k.py'
custom_hooks = [dict(type='EpochSeedHook')]
val_cfg = dict(_delete_=True)
train_cfg = dict(max_epochs=100)
param_scheduler = dict(milestones=[30, 60, 90])
edges = {size: dict(RandomResizedCrop=dict(scale=size), CenterCrop=dict(crop_size=size),
                    ResizeEdge=dict(scale=round(size * 256 / 224))) for size in (192, 160, 128)}
pipelines = {f'{size}px': [[{**t, **edge.get(t['type'], {})} for t in pipeline]
                           for pipeline in (_base_.train_pipeline, _base_.test_pipeline)]
             for size, edge in edges.items()}
del edges
