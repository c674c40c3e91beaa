"""The checkpoint that a run resumes or starts from, in any work directory."""
import os
from pathlib import Path

import pytest
import torch
import torch.distributed
from forks import in_two_processes
from mmengine.config import Config

import sct_mm  # noqa: F401
from sct_mm.engine import resume
from sct_mm.engine.resume import (
    candidates,
    choose_start,
    find_checkpoint,
    newest_whole,
)
from sct_mm.utils.errors import UserError

EVERYTHING = dict(state_dict=dict(w=torch.zeros(999)), optimizer={},
                  message_hub={})


def save(path, number, time=None, without=()):
    """A checkpoint of epoch ``number``, written at ``time``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    value = dict(EVERYTHING, meta=dict(epoch=number, iter=number))
    torch.save({k: v for k, v in value.items() if k not in without}, path)
    os.utime(path, (number if time is None else time, ) * 2)
    return str(path)


@pytest.fixture
def run(tmp_path):
    """The config of a run with three whole checkpoints."""
    folder = tmp_path / 'run'
    for number in (1, 2, 3):
        save(folder / f'epoch_{number}.pth', number)
    return Config(dict(work_dir=str(folder)))


def at(cfg, name):
    return os.path.join(cfg.work_dir, name)


def at_path(cfg, name):
    return Path(at(cfg, name))


def cut(path, time=9):
    os.truncate(path, 700)
    os.utime(path, (time, time))


@pytest.mark.parametrize('text', [
    None, '', ' \n', '\0\0\0', 'gone/epoch_4.pth', 'epoch_1.pth', '\udcff'])
def test_whatever_last_checkpoint_says(text, run, capsys):
    if text is not None:
        if text == 'epoch_1.pth':
            text = at(run, text)
        with open(at(run, 'last_checkpoint'), 'w',
                  errors='surrogateescape') as file:
            file.write(text)
    assert newest_whole(run) == at(run, 'epoch_3.pth')
    output = capsys.readouterr().out
    assert f"goes on from {at(run, 'epoch_3.pth')!r}" in output
    assert ('gone/epoch_4.pth' in output) == (text == 'gone/epoch_4.pth')


def test_what_is_damaged_is_named_and_passed_over(run, capsys):
    for name in ('epoch_4.pth', 'epoch_5.pth'):
        cut(save(at_path(run, name), 4))
    at_path(run, 'epoch_6.pth').touch()
    at_path(run, 'last_checkpoint').write_text(at(run, 'epoch_5.pth'))
    assert newest_whole(run) == at(run, 'epoch_3.pth')
    output = capsys.readouterr().out
    for name in ('epoch_4.pth', 'epoch_5.pth', 'epoch_6.pth'):
        assert f'Passed over: The checkpoint {at(run, name)!r}' in output
    assert 'epoch_2.pth' not in output


@pytest.mark.parametrize('without', [
    ('optimizer', ), ('message_hub', ), ('meta', ), ('state_dict', )])
def test_what_lacks_the_state_of_the_training_is_passed_over(
        without, run, capsys):
    save(at_path(run, 'epoch_4.pth'), 4, without=without)
    assert newest_whole(run) == at(run, 'epoch_3.pth')
    assert f'lacks {without[0]}' in capsys.readouterr().out
    with pytest.raises(UserError, match=f'cannot be resumed: it lacks '
                       f'{without[0]}'):
        choose_start(run, at(run, 'epoch_4.pth'))


def test_none_is_whole(run):
    content = {}
    for number in (1, 2, 3):
        path = at_path(run, f'epoch_{number}.pth')
        cut(path)
        content[path] = path.read_bytes()
    with pytest.raises(UserError, match='No checkpoint in .* is whole: '
                       '.*epoch_3.pth.*epoch_2.pth.*epoch_1.pth'):
        choose_start(run, 'auto')
    assert all(p.read_bytes() == value for p, value in content.items())


def test_last_checkpoint_alone_is_no_reason_to_start_anew(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('elsewhere/epoch_7.pth')
    with pytest.raises(UserError, match="names 'elsewhere/epoch_7.pth'"):
        choose_start(Config(dict(work_dir=str(tmp_path))), 'auto')


def test_a_new_run_starts_as_its_config_says(tmp_path):
    weights = save(tmp_path / 'weights.pth', 0, without=('optimizer', ))
    for folder in (tmp_path / 'absent', tmp_path):
        cfg = Config(dict(work_dir=str(folder)))
        choose_start(cfg, 'auto')
        assert (cfg.resume, cfg.load_from) == (False, None)
        cfg.load_from = weights
        choose_start(cfg, 'auto')
        assert (cfg.resume, cfg.load_from) == (False, weights)


def test_which_of_the_ways_to_start_wins(run, tmp_path):
    weights = save(tmp_path / 'weights.pth', 0, without=('optimizer', ))
    newest, second = at(run, 'epoch_3.pth'), at(run, 'epoch_2.pth')
    for argument, config, want in (
            ('auto', dict(load_from=weights), (True, newest)),
            (second, dict(load_from=weights), (True, second)),
            (None, dict(resume=True), (True, newest)),
            (None, dict(resume=True, load_from=second), (True, second)),
            (None, dict(load_from=weights), (False, weights)),
            (None, {}, (False, None))):
        cfg = Config(dict(work_dir=run.work_dir, **config))
        choose_start(cfg, argument)
        assert (cfg.resume, cfg.load_from) == want
    with pytest.raises(UserError, match="must be a file, but got 'a.pth'"):
        choose_start(run, 'a.pth')


def test_newest_by_time_and_then_by_number(run):
    """A restarted run has lower numbers, and all files of a copied folder may
    have the same time."""
    os.utime(at(run, 'epoch_1.pth'), (9, 9))
    assert newest_whole(run) == at(run, 'epoch_1.pth')
    save(at_path(run, 'epoch_10.pth'), 10, 9)
    save(at_path(run, 'iter_9.pth'), 9, 9)
    assert newest_whole(run) == at(run, 'epoch_10.pth')


def test_a_copy_that_has_lost_its_times_is_reported(run, capsys):
    at_path(run, 'last_checkpoint').write_text(at(run, 'epoch_3.pth'))
    os.utime(at(run, 'epoch_1.pth'), (9, 9))
    newest_whole(run)
    assert f"--resume {at(run, 'epoch_3.pth')}" in capsys.readouterr().out
    os.utime(at(run, 'epoch_3.pth'), (10, 10))
    newest_whole(run)
    assert 'copied' not in capsys.readouterr().out


def test_other_files_are_no_candidates(run):
    for name in ('best_accuracy_epoch_9.pth', 'epoch_9.pth.partial',
                 'epoch_9-1234abcd.pth', 'epoch_x.pth', 'xepoch_9.pth'):
        save(at_path(run, name), 9)
    at_path(run, 'epoch_8.pth').mkdir()  # as DeepSpeed saves
    assert [c.number for c in candidates(run)] == [3, 2, 1]


@pytest.mark.parametrize('place', ['default_hooks', 'custom_hooks'])
@pytest.mark.parametrize('template, name', [
    ('e-{}.ckpt', 'e-12.ckpt'), ('step{:06d}.pth', 'step000012.pth')])
def test_the_folder_and_the_names_of_the_hook(place, template, name, tmp_path):
    hook = dict(type='mmengine.CheckpointHook', filename_tmpl=template,
                out_dir=str(tmp_path / 'out'))
    cfg = Config({'work_dir': str(tmp_path / 'run'), place: dict(
        checkpoint=hook) if place == 'default_hooks' else [hook]})
    want = save(tmp_path / 'out' / 'run' / name, 12)
    save(tmp_path / 'out' / 'run' / 'other.pth', 13)
    save(tmp_path / 'out' / 'another-run' / name, 14)
    assert newest_whole(cfg) == want


def test_a_file_elsewhere_that_last_checkpoint_names(run, tmp_path):
    """The hook had another out_dir when the checkpoint was written."""
    other = save(tmp_path / 'out' / 'epoch_4.pth', 4)
    at_path(run, 'last_checkpoint').write_text(other)
    assert newest_whole(run) == other
    # of a copied folder, and of the one that it was copied from, the copy
    os.utime(other, (3, 3))
    save(tmp_path / 'out' / 'epoch_3.pth', 3)
    at_path(run, 'last_checkpoint').write_text(
        str(tmp_path / 'out' / 'epoch_3.pth'))
    assert newest_whole(run) == at(run, 'epoch_3.pth')


def test_partial_files_of_a_killed_run_are_removed(run):
    stay = ['epoch_3.pth', 'scales.json.partial', 'notes.partial']
    for name in [*stay[1:], 'epoch_4.pth.partial', 'iter_9.pth.partial',
                 'best_accuracy_top1_epoch_4.pth.partial']:
        at_path(run, name).touch()
    choose_start(run, 'auto')
    assert set(stay) < set(os.listdir(run.work_dir))
    assert len([n for n in os.listdir(run.work_dir)
                if n.endswith('.partial')]) == 2


@pytest.mark.parametrize('text', ['', 'gone/epoch_4.pth'])
def test_a_work_directory_stands_for_its_newest_whole_checkpoint(
        text, run, capsys):
    """Also after a training was killed; a test needs the weights alone."""
    at_path(run, 'last_checkpoint').write_text(text)
    cut(save(at_path(run, 'epoch_5.pth'), 5))
    want = save(at_path(run, 'epoch_4.pth'), 4, without=('optimizer', ))
    at_path(run, 'epoch_6.pth.partial').touch()
    assert find_checkpoint(run.work_dir, run) == want
    assert find_checkpoint(f'{run.work_dir}/') == want
    output = capsys.readouterr().out
    assert f"Passed over: The checkpoint {at(run, 'epoch_5.pth')!r}" in output
    assert f'Using {want!r}' in output and '--resume' not in output
    assert at_path(run, 'epoch_6.pth.partial').exists()
    assert newest_whole(run) == at(run, 'epoch_3.pth')


def test_the_best_checkpoint_of_a_folder_is_named_not_taken(run, capsys):
    best = save(at_path(run, 'best_mean_accuracy_top1_epoch_2.pth'), 2)
    assert find_checkpoint(run.work_dir) == at(run, 'epoch_3.pth')
    assert f'is there, too: {best}. Name it' in capsys.readouterr().out


def test_a_folder_that_has_the_best_checkpoint_alone(tmp_path):
    """As of CheckpointHook(interval=-1, save_best='auto')."""
    best = save(tmp_path / 'best_accuracy_top1_epoch_2.pth', 2)
    with pytest.raises(UserError, match='it has the best by its validation '
                       f'alone: {best}. Name it to use it'):
        find_checkpoint(str(tmp_path))
    os.remove(best)
    with pytest.raises(UserError, match='it has none. Train first, or name'):
        find_checkpoint(str(tmp_path))


def test_a_checkpoint_in_a_copied_folder(run, capsys):
    at_path(run, 'last_checkpoint').write_text(at(run, 'epoch_3.pth'))
    os.utime(at(run, 'epoch_1.pth'), (9, 9))
    assert find_checkpoint(run.work_dir) == at(run, 'epoch_1.pth')
    output = capsys.readouterr().out
    assert f"name it by {at(run, 'epoch_3.pth')}." in output


def test_a_work_directory_whose_config_names_the_files(tmp_path):
    cfg = Config(dict(work_dir='elsewhere', custom_hooks=[dict(
        type='CheckpointHook', filename_tmpl='e-{}.ckpt',
        out_dir=str(tmp_path / 'out'))]))
    want = save(tmp_path / 'out' / 'run' / 'e-7.ckpt', 7)
    (tmp_path / 'run').mkdir()
    assert find_checkpoint(str(tmp_path / 'run'), cfg) == want
    assert cfg.work_dir == 'elsewhere'


def test_what_is_no_work_directory_is_left_to_who_reads_it(run, monkeypatch):
    for path in ('a.pth', 'https://a/b.pth', at(run, 'epoch_1.pth')):
        assert find_checkpoint(path, run) == path
    monkeypatch.setenv('HOME', os.path.dirname(run.work_dir))
    assert find_checkpoint('~/run', run) == at(run, 'epoch_3.pth')
    at_path(run, 'last_checkpoint').write_text('s3://bucket/epoch_9.pth')
    assert find_checkpoint(run.work_dir, run) == 's3://bucket/epoch_9.pth'


def test_a_work_directory_without_a_whole_checkpoint(run, tmp_path):
    for number in (1, 2, 3):
        cut(at_path(run, f'epoch_{number}.pth'))
    with pytest.raises(UserError, match='is whole: .*Name another by '
                       'CHECKPOINT, or move them away'):
        find_checkpoint(run.work_dir, run)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match="'.*empty' must hold a checkpoint of "
                       'a training, but it has none'):
        find_checkpoint(str(tmp_path / 'empty'))


@pytest.mark.parametrize('remote', [False, True])
def test_last_checkpoint_may_name_what_is_no_file(remote, run, monkeypatch):
    """A remote store, which its own client reads, or DeepSpeed's folder."""
    checked = []
    monkeypatch.setattr(resume, 'check_resumable', checked.append)
    last = 's3://bucket/epoch_9.pth' if remote else at(run, 'epoch_9.pth')
    if not remote:
        os.mkdir(last)
    at_path(run, 'last_checkpoint').write_text(last)
    choose_start(run, 'auto')
    assert (run.resume, run.load_from) == (True, last)
    assert checked == ([last] if remote else [])


def start_on(rank, folder):
    torch.distributed.init_process_group(
        'gloo', f'file://{folder}/store', rank=rank, world_size=2)
    cfg = Config(dict(work_dir=f'{folder}/{rank}'))
    choose_start(cfg, 'auto')
    assert cfg.load_from == f'{folder}/0/epoch_1.pth' and cfg.resume
    cfg = Config(dict(work_dir=f'{folder}/bad-{rank}'))
    with pytest.raises(UserError, match='is whole'):
        choose_start(cfg, 'auto')
    # mmengine's processes wait for each other after a download
    resume.check_checkpoint = lambda path: torch.distributed.barrier()
    cfg = Config(dict(work_dir=folder, load_from='https://a/b.pth'))
    choose_start(cfg)
    assert cfg.load_from == 'https://a/b.pth'
    torch.distributed.destroy_process_group()


def test_processes_decide_alike(tmp_path):
    """The main process decides, also to refuse; the other one has another
    disk."""
    save(tmp_path / '0' / 'epoch_1.pth', 1)
    save(tmp_path / '1' / 'epoch_2.pth', 2)
    cut(save(tmp_path / 'bad-0' / 'epoch_1.pth', 1))
    in_two_processes(start_on, str(tmp_path))
