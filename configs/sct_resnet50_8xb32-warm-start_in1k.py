# Starts from the stock checkpoint, which is copied to every scale. 51 epochs cost what 30
# at 224 px cost. Not run.
_base_ = './sct_resnet50_8xb32_in1k.py'
load_from = ('https://download.openmmlab.com/mmclassification/v0/resnet/'
             'resnet50_8xb32_in1k_20210831-ea4938fc.pth')
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=51,
                       convert_to_iter_based=True)
train_cfg = dict(max_epochs=51)
