"""What is exported, deployed and fused: one scale, extracted."""
import io
from operator import attrgetter

import pytest
import torch
from helpers import plain_net, randomised
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.testing import assert_close

from sct_mm import convert_to_ssbn, extract_scale, use_scale

EXPORTS = dict(
    export=lambda net, x: torch.export.export(net, (x, )),
    strict=lambda net, x: torch.export.export(net, (x, ), strict=True),
    onnx=lambda net, x: torch.onnx.export(net, (x, ), io.BytesIO(),
                                          dynamo=False),
    script=lambda net, x: torch.jit.script(net),
    fx=lambda net, x: torch.fx.symbolic_trace(net))


@pytest.mark.filterwarnings('ignore')  # torch's of its own exporters
@pytest.mark.parametrize('export', EXPORTS)
def test_an_unextracted_network_is_not_exported(export):
    torch.compiler.reset()
    net = convert_to_ssbn(nn.Sequential(nn.Conv2d(3, 4, 3),
                                        nn.BatchNorm2d(4)), (16, 8)).eval()
    x = torch.randn(1, 3, 16, 16)
    try:
        with pytest.raises(Exception, match='extract_scale'):
            EXPORTS[export](net, x)
    finally:
        # torch.onnx.export leaves it off when what it exports raises.
        torch.set_autocast_cache_enabled(True)
    EXPORTS[export](extract_scale(net, 8).eval(), x)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_bare_trace_warns_and_counts_flops():
    from mmengine.analysis import get_model_complexity_info
    net = convert_to_ssbn(plain_net(), (8, 4)).eval()
    with pytest.warns(UserWarning, match='fixes the scale that it saw'):
        torch.jit.trace(net, torch.randn(1, 3, 8, 8))
    with pytest.warns(UserWarning, match='extract_scale'):
        count = get_model_complexity_info(net, (3, 8, 8), show_table=False,
                                          show_arch=False)
    want = get_model_complexity_info(extract_scale(net, 4), (3, 8, 8),
                                     show_table=False, show_arch=False)
    assert count['flops'] == want['flops'] > 0


def test_a_reparameterised_host_deploys_what_was_extracted():
    """It looks at the norm_cfg it has kept, before it fuses."""
    import mmpretrain.models  # noqa: F401
    net = randomised(MODELS.build(dict(
        type='mmpretrain.RepVGG', arch='A0',
        norm_cfg=dict(type='SSBN', scales=(64, 32))))).double()
    net.note = dict(a=[dict(norm_cfg=dict(type='SSBN1d', scales=(64, 32)))])
    plain = extract_scale(net, 32)
    assert plain.note == dict(a=[dict(norm_cfg=dict(type='BN1d'))])
    assert net.norm_cfg == dict(type='SSBN', scales=(64, 32))
    plain.eval()
    net.eval()
    x = torch.randn(1, 3, 32, 32).double()
    with use_scale(net, 32):
        want = net(x)[-1]
    assert_close(plain(x)[-1], want)
    plain.switch_to_deploy()
    assert_close(plain(x)[-1], want)


def test_the_tools_of_torch_and_mmcv_fuse_what_was_extracted():
    from torch.fx.experimental.optimization import fuse
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net = randomised(convert_to_ssbn(net, (16, 8))).eval()
    x = torch.randn(2, 3, 8, 8)
    with use_scale(net, 8):
        want = net(x)
    for fused in (fuse_conv_bn(extract_scale(net, 8)),
                  fuse(extract_scale(net, 8).eval())):
        assert_close(fused(x), want)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def fused_by_its_host(net):
    from mmpretrain.models.backbones.mobileone import MobileOneBlock
    convert_to_ssbn(MobileOneBlock(4, 4, 3, 1, padding=1),
                    net[1].scales).switch_to_deploy()


def fused_in_a_pass(net):
    module = ConvModule(3, 4, 1, efficient_conv_bn_eval=True, norm_cfg=dict(
        type='SSBN', scales=net[1].scales))
    module.eval()(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize('scales', [(16, 8), (16, )])
@pytest.mark.parametrize('fuse', [
    fused_in_a_pass, fused_by_its_host, fuse_conv_bn,
    lambda net: fuse_conv_bn_eval(net[0], net[1])])
def test_no_host_folds_rows_into_a_convolution(fuse, scales):
    net = convert_to_ssbn(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3)), scales).eval()
    with pytest.raises(RuntimeError, match=r'(fuse|_eval).*\(\) knows no '
                       r'rows, but got those of the scales \(16,.*extract_'):
        fuse(net)
    assert net[1].eps == 1e-3
    x = torch.randn(1, 3, 16, 16)
    plain = extract_scale(net, 16)
    want = plain(x)
    assert_close(fuse_conv_bn(plain)(x), want)
    net[1].eps = 10.
    assert not torch.allclose(net(x), want)


def _timm(name, *args):
    return lambda net: attrgetter(name)(pytest.importorskip('timm'))(
        net, *args)


def merged(net):
    from timm.models.nextvit import merge_pre_bn
    merge_pre_bn(nn.Conv2d(4, 4, 1), net[1])


@pytest.mark.parametrize('convert', [
    _timm('utils.freeze', '1'), _timm('layers.convert_splitbn_model'), merged,
    _timm('utils.model.freeze_batch_norm_2d')])
def test_no_layer_is_built_of_rows(convert):
    net = convert_to_ssbn(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (16, 8)).eval()
    norm = net[1]
    with pytest.raises(RuntimeError, match=r'\(\) knows no rows, but got '
                       r'those of the scales \(16, 8\).*extract_scale'):
        convert(net)
    assert net[1] is norm
