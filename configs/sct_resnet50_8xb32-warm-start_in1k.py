# From the stock checkpoint, whose statistics fill every scale; the compute of 30 epochs
# at 224, not 100. Not run.
_base_ = './sct_resnet50_8xb32_in1k.py'
load_from = ('https://download.openmmlab.com/mmclassification/v0/resnet/'
             'resnet50_8xb32_in1k_20210831-ea4938fc.pth')
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=51,
                       convert_to_iter_based=True)
train_cfg = dict(max_epochs=51)
