"""Whether a run that is resumed has the images of the one before."""
import numpy as np
import pytest
import torch
from mmengine.config import Config

from sct_mm.datasets.base_size import BaseSize
from sct_mm.engine.same_run import check_same_run, digest_of
from sct_mm.utils.errors import UserError


@pytest.mark.parametrize('folder, same', [
    ('photos', True), ('photos/', True), ('./photos', True),
    ('{}/photos/', True), ('link', True), ('other', False),
    ('{}', False), (None, False)])
def test_the_folder_of_a_run_by_another_name(folder, same, tmp_path,
                                             monkeypatch):
    """A shell completes it with `/`, and a script may name it in full."""
    def config(path):
        return Config(dict(
            model=dict(scales=[28, 14]), train_cfg=dict(max_epochs=1),
            optim_wrapper=dict(optimizer=dict(lr=0.1)),
            custom_hooks=[dict(between=0.0)], train_dataloader=dict(
                sampler=dict(held_out=32),
                dataset={} if path is None else dict(folder=path))))

    def check():
        check_same_run(config('photos'), config(
            folder and folder.format(tmp_path)), BaseSize(28, 28), {}, [], 0)

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'link').symlink_to('photos')
    if same:
        check()
    else:
        with pytest.raises(UserError, match='`--images` must be .*/photos, '
                           'as in the run that --resume goes on with, but'):
            check()


def test_the_images_of_a_digest(tmp_path):
    class Arrays:
        pixels = np.arange(12).reshape(4, 3)

        def get_data_info(self, index):
            return dict(img=self.pixels[index], img_path=None)

    class Files:
        folder = tmp_path / 'a'

        def get_data_info(self, index):
            return dict(img_path=str(self.folder / f'{index}.png'))

    for data in (Arrays(), Files()):
        if isinstance(data, Files):
            data.folder.mkdir()
            for index in range(4):
                (data.folder / f'{index}.png').write_text(f'image {index}')
        first = digest_of(data, [0, 2])
        assert digest_of(data, torch.tensor([0, 2])) == first
        assert first not in (digest_of(data, [2, 0]), digest_of(data, [0, 3]))
    data.folder = data.folder.rename(tmp_path / 'moved')
    assert digest_of(data, [0, 2]) == first
    (data.folder / '2.png').write_text('another')
    assert digest_of(data, [0, 2]) != first
    assert digest_of([1, 2], [0]) == digest_of([3], [])  # no mmengine's
