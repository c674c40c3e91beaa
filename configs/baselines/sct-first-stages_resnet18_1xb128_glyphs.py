# To compare with: private statistics in the stem and the first two stages alone.
_base_ = '../sct_resnet18_1xb128_glyphs.py'
custom_imports = dict(imports=['sct_mm', 'sct_mm.evaluation.ablation'])
model = dict(_delete_=True, type='WithSharedBN', model=_base_.model,
             shared=['backbone.layer3', 'backbone.layer4'])
