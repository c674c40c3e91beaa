"""apis.fidelity on the siblings: what they answer is compared, or refused."""
import pytest
import torch
from cases import CASES, HOSTS_OWN, folder_of, small
from mmengine.registry import MODELS, init_default_scope

from sct_mm import apis
from sct_mm.evaluation import measure
from sct_mm.utils.errors import UserError

pytestmark = HOSTS_OWN
# {name of a case: (sizes, the base first; metrics, or what is refused)}
PIXELS = ('agreement', 'mIoU')
ANSWERS = ('agreement/all', 'agreement/sure', 'kl')
BOXES = ('bbox_mAP', 'bbox_mAP_50')
COMPARED = {
    'fcn_r18-d8_4xb2-80k_cityscapes-512x1024': ((128, 64), PIXELS),
    'tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb': (
        (56, 40), ANSWERS),
    'yolov5_n-v61_syncbn_fast_8xb16-300e_coco': ((128, 96), BOXES),
    'td-hm_res50_8xb64-210e_coco-256x192': ((192, 96), 'pred_instances'),
    'rotated-retinanet-rbox-le90_r50_fpn_1x_dota': ((128, 64),
                                                    'pred_instances')}
# A top-down network needs boxes, which images alone do not have.
CHOSEN = [pytest.param(case, images, id=f'{case.name}-{kind}')
          for case in CASES if case.name in COMPARED
          for kind, images in (('data', False), ('folder', True))
          if not (images and case.host == 'mmpose')]


@pytest.fixture(autouse=True)
def no_timing(monkeypatch):
    monkeypatch.setattr(measure, 'ROUNDS', 2)


@pytest.mark.parametrize('case, images', CHOSEN)
def test_each_size_against_the_base(case, images, tmp_path_factory, tmp_path,
                                    record_property):
    record_property('host', case.host)
    folder = folder_of(case.host, tmp_path_factory)
    cfg = small(case, folder, tmp_path)
    if case.host == 'mmyolo':  # of random weights
        cfg.model.test_cfg.update(score_thr=0.0, max_per_img=5)
    cfg.dump(str(tmp_path / 'config.py'))
    init_default_scope(case.host)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    sizes, wanted = COMPARED[case.name]
    arguments = dict(
        config=str(tmp_path / 'config.py'), checkpoint=str(tmp_path / 'a.pth'),
        scales=sizes, sure=0.0, out=str(tmp_path / 'out'),
        images=str(folder) if images else None)
    if isinstance(wanted, str) or (images and wanted == ANSWERS):
        match = 'decodes videos' if wanted == ANSWERS else (
            f'without labels .*, but they hold {wanted}')
        with pytest.raises(UserError, match=match):
            apis.fidelity(**arguments)
        return
    result, = apis.fidelity(**arguments)
    base, small_one = result['rows']
    assert (base['scale'], small_one['scale']) == sizes
    assert tuple(base['metrics']) == tuple(small_one['metrics']) == wanted
    assert base['metrics'][wanted[0]] == (1 if wanted == BOXES else 100)
    assert 0 <= small_one['metrics'][wanted[0]] <= 100
