"""Checkpoints are whole or absent, and on the disk before their names are."""
import errno
import os
from unittest import mock

import pytest
import torch
from mmengine.fileio import get_file_backend

import sct_mm  # noqa: F401
from sct_mm.utils.checkpoint import check_checkpoint, check_place, dump
from sct_mm.utils.cli import sentence_of
from sct_mm.utils.errors import UserError

FULL = OSError(errno.ENOSPC, 'No space left on device')


@pytest.fixture
def backend():
    return get_file_backend('x', backend_args=dict(backend='atomic_local'))


def raises(error):
    def function(*args):
        raise error
    return function


@pytest.mark.parametrize('name', ['replace', 'fsync'])
def test_a_write_that_fails_leaves_the_file_before(name, backend, tmp_path,
                                                   monkeypatch):
    path = tmp_path / 'folder' / 'epoch_1.pth'
    backend.put(b'first', path)
    monkeypatch.setattr(os, name, raises(FULL))
    with pytest.raises(OSError, match='No space left.*--resume') as caught:
        backend.put(b'second', path)
    assert str(path) in sentence_of(caught.value)
    assert path.read_bytes() == b'first'
    assert [p.name for p in path.parent.iterdir()] == ['epoch_1.pth']


def test_a_name_that_a_file_system_takes_is_written_whole(backend, tmp_path):
    longest = os.pathconf(tmp_path, 'PC_NAME_MAX') - 12
    for name in ('a' * longest, 'ä' * (longest // 2)):
        path = tmp_path / ('b' * (longest + 12)) / name
        check_place(str(path))
        backend.put(b'', f'{path}.new')
        check_place(str(path))  # its folder is there


@pytest.mark.parametrize('name', [
    'a' * 244, 'ä' * 122, 'b' * 256 + '/a', 'a/' + 'b' * 256 + '/c/a',
    'c/' * 2500 + 'a'])
def test_a_name_that_is_too_long_is_found_before_the_work(name, tmp_path):
    with pytest.raises(UserError, match='of at most [0-9]+ bytes, but .* '
                       'has [0-9]+. Name a shorter one'):
        check_place(str(tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('limit', [
    -1, 0, OSError(errno.EINVAL, 'Invalid argument')])
def test_a_file_system_without_a_limit_takes_any_name(limit, tmp_path,
                                                      monkeypatch):
    monkeypatch.setattr(os, 'pathconf', mock.Mock(side_effect=[limit] * 2))
    check_place(str(tmp_path / ('a' * 300)))


@pytest.mark.parametrize('text', [False, True])
def test_data_are_synchronised_before_the_name_and_the_folder_after(
        text, backend, tmp_path, monkeypatch):
    """By inode: the file under its partial name, rename, the folder."""
    path, done = tmp_path / 'a', []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        inode = os.fstat(descriptor)
        done.append(('fsync', inode.st_ino, path.exists()))
        fsync(descriptor)

    def record_replace(*args):
        done.append('replace')
        replace(*args)

    monkeypatch.setattr(os, 'fsync', record_fsync)
    monkeypatch.setattr(os, 'replace', record_replace)
    if text:
        backend.put_text('ä', path, encoding='latin-1')
    else:
        backend.put(b'\xe4', path)
    assert path.read_bytes() == b'\xe4'
    assert done == [('fsync', path.stat().st_ino, False), 'replace',
                    ('fsync', tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize('number, goes_on', [
    (errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_synchronise_folders(
        number, goes_on, backend, tmp_path, monkeypatch):
    fsync = os.fsync

    def files_alone(descriptor):
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(number, 'of a folder')
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', files_alone)
    if goes_on:
        backend.put(b'a', tmp_path / 'a')
    else:
        with pytest.raises(OSError, match='of a folder'):
            backend.put(b'a', tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == b'a'


def test_a_relative_path_without_a_folder(backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend.put(b'a', 'a')
    backend.remove('a')
    backend.put(b'b', 'b')
    assert os.listdir() == ['b']


def test_a_partial_file_of_a_killed_run_is_overwritten(backend, tmp_path):
    (tmp_path / 'a.partial').write_bytes(b'longer than the new one')
    backend.put(b'new', tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == b'new'
    assert os.listdir(tmp_path) == ['a']


def test_removal_waits_for_the_next_file_of_the_folder(backend, tmp_path,
                                                       monkeypatch):
    def other():  # mmengine removes by one instance and saves by another
        return get_file_backend('x', backend_args=dict(backend='atomic_local'))

    old, kept = tmp_path / 'run' / 'a', tmp_path / 'of_another_run'
    for path in (old, kept):
        backend.put(b'old', path)
        backend.remove(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', raises(FULL))
        with pytest.raises(OSError, match='nothing older is lost'):
            other().put(b'new', old.with_name('b'))
    assert old.read_bytes() == b'old'
    other().put(b'new', old.with_name('b'))
    assert os.listdir(old.parent) == ['b'] and kept.exists()


def test_a_file_that_is_written_again_is_not_removed(backend, tmp_path):
    backend.put(b'old', tmp_path / 'a')
    backend.remove(tmp_path / 'a')
    backend.put(b'new', tmp_path / 'a')
    backend.put(b'other', tmp_path / 'b')
    assert (tmp_path / 'a').read_bytes() == b'new'


def test_a_file_that_someone_else_removes(backend, tmp_path):
    backend.put(b'old', tmp_path / 'a')
    backend.remove(tmp_path / 'a')
    (tmp_path / 'a').unlink()
    backend.put(b'new', tmp_path / 'b')
    with pytest.raises(FileNotFoundError, match='a'):
        backend.remove(tmp_path / 'a')
    with pytest.raises(IsADirectoryError):
        backend.remove(tmp_path)


def test_dump_says_what_it_could_not_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', raises(FULL))
    with pytest.raises(UserError, match='scales.json.*No space left'):
        dump({}, str(tmp_path / 'scales.json'))


def test_a_full_disk_is_one_sentence_and_other_errors_are_not():
    assert 'Make room' in sentence_of(raised(FULL))
    assert sentence_of(raised(PermissionError(errno.EACCES, 'no'))) is None


def raised(error):
    try:
        raise error
    except OSError as caught:
        return caught


def checkpoint(path, **options):
    value = dict(state_dict=dict(w=torch.arange(9999.)), meta={})
    torch.save(value, path, **options)
    return value


@pytest.mark.parametrize('options', [
    {}, dict(_use_new_zipfile_serialization=False)])
def test_a_whole_checkpoint_is_read(options, tmp_path):
    value = checkpoint(tmp_path / 'a.pth', **options)
    read = check_checkpoint(str(tmp_path / 'a.pth'))
    assert torch.equal(read['state_dict']['w'], value['state_dict']['w'])


@pytest.mark.parametrize('keep', [0., 0.01, 0.5, 0.99])
@pytest.mark.parametrize('options', [
    {}, dict(_use_new_zipfile_serialization=False)])
def test_a_cut_checkpoint_is_refused(keep, options, tmp_path):
    path = tmp_path / 'a.pth'
    checkpoint(path, **options)
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(UserError, match='a.pth.*cannot be read'):
        check_checkpoint(str(path))


def test_a_page_of_zeros_is_refused(tmp_path):
    """Of the right size, as after a loss of power; torch would load it."""
    path = tmp_path / 'a.pth'
    checkpoint(path)
    with open(path, 'r+b') as file:
        file.seek(8192)
        file.write(bytes(4096))
    loaded = torch.load(path)['state_dict']['w']
    assert not torch.equal(loaded, torch.arange(9999.))
    with pytest.raises(UserError, match="checksum of '.*' is wrong"):
        check_checkpoint(str(path))


def test_a_missing_checkpoint_names_what_is_there(tmp_path):
    for name in ('c.pth', 'notes.txt', *(f'epoch_{i}.pth'
                                         for i in range(1, 7))):
        (tmp_path / name).write_text('')
    with pytest.raises(UserError, match=r'none.pth., which is missing from '
                       r"the folder '.*', which has c.pth, epoch_1.pth, .*"
                       r'epoch_4.pth and 2 more\. Train first'):
        check_checkpoint(str(tmp_path / 'none.pth'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match="'.*empty', which has no .pth. Train"):
        check_checkpoint(str(tmp_path / 'empty' / 'none.pth'))
    with pytest.raises(UserError, match="missing, as is its folder '.*no'"):
        check_checkpoint(str(tmp_path / 'no' / 'none.pth'))
