"""tools/test.py --against-base as a user runs it, and what it refuses."""
import json
import os.path as osp
from importlib.util import module_from_spec, spec_from_file_location

import exports
import pytest
from conftest import ROOT


@pytest.fixture(scope='module')
def tool():
    spec = spec_from_file_location('test_tool', osp.join(ROOT,
                                                         'tools/test.py'))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_and_two_files(run_tool, tmp_path):
    config, checkpoint, options = exports.fashion(tmp_path)
    code, output = run_tool(
        'test.py', config, checkpoint, '--against-base', '--scales', 14, 18,
        '--out', tmp_path / 'out', '--sure', 0.2, '--cfg-options',
        *(f'{name}={value}' for name, value in options.items()))
    assert code == 0, output
    assert 'agreement' in output and 'GFLOPs' in output
    assert 'its own answers at 28 pixels on 12 images, without' in output
    model, = json.loads((tmp_path / 'out' / 'fidelity.json').read_text()
                        )['models']
    assert [row['scale'] for row in model['rows']] == [28, 18, 14]
    assert (tmp_path / 'out' / 'fidelity.png').exists()
    assert not (tmp_path / 'out' / 'scales.json').exists()


def test_a_folder_without_images_is_one_sentence(run_tool, tmp_path):
    code, output = run_tool('test.py', 'no.py', 'no.pth', '--against-base',
                            '--images', tmp_path)
    assert code == 2 and 'Traceback' not in output
    assert 'must hold images' in output


@pytest.mark.parametrize('options, match', [
    (['--images', 'a'], '--images and --sure belong to --against-base'),
    (['--sure', '0.3'], '--images and --sure belong to --against-base'),
    (['--against-base', '--against', 'a', 'b'], 'not allowed with'),
    (['--against-base', '--cascade', '14', '28'], 'is tested by labels'),
    (['--against', 'a', 'b', '--cascade', '14', '28'], 'tested by labels')])
def test_options_that_contradict(options, match, tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(['config.py', 'a.pth', *options])
    assert match in ' '.join(capsys.readouterr().err.split())
