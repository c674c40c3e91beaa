"""What is exported, deployed and fused: one scale, extracted."""
import copy
import io
from operator import attrgetter

import pytest
import torch
from helpers import plain_net, randomised
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.testing import assert_close

from sct_mm import (
    SSBN,
    SCTLossHook,
    SSBN1d,
    SSBN3d,
    SyncSSBN,
    convert_to_ssbn,
    extract_scale,
    use_scale,
)
from sct_mm.models.guards import damaged_by_sync_bn

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


SHAPES = [(4, (16, 8)), (2, (16, 8)), (1, (16, 8)), (4, (16, )), (1, (16, ))]
# torch's own: shapes (S * C,) and (S, C) do not fit.
TORCHS = ('size of tensor|expected bias to be 1-dimensional|is invalid for '
          'input|should contain|expected 1 dims|cannot be multiplied')


def small_net(channels=4, scales=(16, 8), eps=1e-3):
    return randomised(convert_to_ssbn(nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels, eps=eps),
        nn.Conv2d(channels, 2, 1)), scales)).eval()


def assert_same(net, before):
    """Whether ``net`` is as its deep copy ``before``."""
    assert [type(m) for m in net] == [type(m) for m in before]
    assert net[1].eps == before[1].eps
    assert_close(net.state_dict(), before.state_dict(), rtol=0, atol=0)


def fused_by_its_host(net):
    from mmpretrain.models.backbones.mobileone import MobileOneBlock
    channels = net[1].num_features
    block = convert_to_ssbn(MobileOneBlock(channels, channels, 3, 1,
                                           padding=1), net[1].scales)
    block.switch_to_deploy()
    return nn.Sequential(net[0], block)


def fused_in_a_pass(net):
    return ConvModule(
        3, net[1].num_features, 1, efficient_conv_bn_eval=True,
        norm_cfg=dict(type='SSBN', scales=net[1].scales)).eval()


@pytest.mark.parametrize('channels, scales', SHAPES)
@pytest.mark.parametrize('fuse', [
    fused_in_a_pass, fused_by_its_host, fuse_conv_bn,
    lambda net: fuse_conv_bn_eval(net[0], net[1])])
def test_no_host_folds_rows_into_a_convolution(fuse, channels, scales):
    """An error at the latest where the fused convolution runs."""
    net = small_net(channels, scales)
    before, x = copy.deepcopy(net), torch.randn(1, 3, 16, 16)
    plain = extract_scale(net, 16)
    want = plain(x)
    with pytest.raises(RuntimeError, match=TORCHS):
        fuse(net)(x)
    assert_close(fuse_conv_bn(plain)(x), want)
    if fuse is fuse_conv_bn and len(scales) == 1:
        return  # it has put there what has just been refused
    assert_same(net, before)
    net[1].eps = 10.
    assert not torch.allclose(net(x), want)


def traced(net):
    from torch.fx.experimental.optimization import fuse
    fuse(net)


def fused_by_ao(net):
    torch.ao.quantization.fuse_modules(net, ['0', '1'])


def fused_by_ao_for_training(net):
    torch.ao.quantization.fuse_modules_qat(net.train(), [['0', '1']],
                                           inplace=True)


def fused_by_fx(net):
    from torch.ao.quantization.quantize_fx import fuse_fx
    fuse_fx(net)


def quantised_by_fx(net):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx
    prepare_fx(net, get_default_qconfig_mapping(),
               (torch.randn(1, 3, 16, 16), ))


def rewritten(net):
    from mmengine.model.efficient_conv_bn_eval import (
        turn_on_efficient_conv_bn_eval_for_single_model,
    )
    turn_on_efficient_conv_bn_eval_for_single_model(net)


def reparameterised(net):
    from mmpretrain.models.backbones.repvgg import RepVGGBlock
    RepVGGBlock(4, 4, norm_cfg=dict(
        type='SSBN', scales=net[1].scales)).switch_to_deploy()


def merged(net):
    from timm.models.nextvit import merge_pre_bn
    merge_pre_bn(net[2], net[1])


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated')
@pytest.mark.parametrize('convert, message', [
    (traced, r'\(16, 8\).*extract_scale'),
    (rewritten, r'efficient_conv_bn_eval.*\(16, 8\)\. Remove it'),
    (fused_by_ao, 'into Conv2d and SSBN. Take .*extract_scale'),
    (fused_by_ao_for_training, 'into Conv2d and SSBN. Take .*extract_scale'),
    (fused_by_fx, 'extract_scale'), (quantised_by_fx, 'extract_scale'),
    (reparameterised, 'Switch is not allowed'), (merged, TORCHS)])
def test_it_is_refused_at_once(convert, message):
    pytest.importorskip('timm')
    net = small_net()
    before = copy.deepcopy(net)
    with pytest.raises((RuntimeError, AssertionError), match=message):
        convert(net)
    assert_same(net, before)


@pytest.mark.parametrize('layers, norm', [
    ([nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)], SSBN1d(4, (16, 8))),
    ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()], SSBN(4, (16, 8))),
    ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], SyncSSBN(4, (16, 8))),
    ([nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)], SSBN3d(4, (16, 8))),
    ([nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)], SSBN(4, (16, 8))),
    ([nn.Linear(3, 4), nn.BatchNorm1d(4)], SSBN1d(4, (16, 8))),
    ([nn.BatchNorm2d(4), nn.ReLU()], SSBN(4, (16, 8)))])
def test_whatever_torch_fuses_eagerly_names_what_to_do(layers, norm):
    names = [str(i) for i in range(len(layers))]
    fuse = torch.ao.quantization.fuse_modules
    net = nn.Sequential(*layers).eval()
    assert isinstance(fuse(net, names)[-1], nn.Identity)  # stock
    net = nn.Sequential(*(norm if isinstance(m, _BatchNorm) else m
                          for m in layers)).eval()
    with pytest.raises(RuntimeError, match=type(norm).__name__ + r'.*extract'):
        fuse(net, names)
    if not isinstance(norm, SyncSSBN):  # torch fuses no nn.SyncBatchNorm
        fuse(extract_scale(net, 8), names)


def _timm(name, *args):
    return lambda net: attrgetter(name)(pytest.importorskip('timm'))(
        net, *args)


@pytest.mark.parametrize('channels', [4, 2, 1])
@pytest.mark.parametrize('convert', [
    _timm('utils.freeze', '1'), _timm('utils.model.freeze_batch_norm_2d'),
    _timm('layers.convert_splitbn_model'),
    _timm('layers.convert_sync_batchnorm'), convert_sync_batchnorm,
    nn.SyncBatchNorm.convert_sync_batchnorm])
def test_a_norm_that_is_made_of_rows_does_not_run(convert, channels):
    """All tensors are there still, and SCTLossHook says what happened."""
    net = small_net(channels)
    before = net.state_dict()
    convert(net)
    with pytest.raises(RuntimeError, match=f'{TORCHS}|expected input'):
        net(torch.randn(2, 3, 16, 16))
    assert damaged_by_sync_bn(net)
    del before['1._extra_state']
    for name, value in before.items():
        if name in net.state_dict():  # a frozen norm counts no batches
            assert_close(net.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match='`sync_bn` replaces .*SyncSSBN'):
        SCTLossHook().attach(net)


def test_mmengines_way_back_from_sync_leaves_rows():
    net = convert_to_ssbn(plain_net(sync=True), (16, 8))
    norm = net[1]
    assert revert_sync_batchnorm(net)[1] is norm
