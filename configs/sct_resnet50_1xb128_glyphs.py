# A ResNet-50 of full width instead of the thin ResNet-18: minutes on a GPU.
_base_ = './sct_resnet18_1xb128_glyphs.py'
model = dict(
    backbone=dict(depth=50, stem_channels=64, base_channels=64),
    head=dict(in_channels=2048))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_dataloader = dict(num_workers=2, persistent_workers=True)
