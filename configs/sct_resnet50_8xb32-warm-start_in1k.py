# From the stock checkpoint, whose statistics fill every scale; a third of the epochs.
_base_ = './sct_resnet50_8xb32_in1k.py'
load_from = ('https://download.openmmlab.com/mmclassification/v0/resnet/'
             'resnet50_8xb32_in1k_20210831-ea4938fc.pth')
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=30,
                       convert_to_iter_based=True)
train_cfg = dict(max_epochs=30)
