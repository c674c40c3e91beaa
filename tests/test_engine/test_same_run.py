"""Whether a run that is resumed has the images of the one before."""
import numpy as np
import torch

from sct_mm.engine.same_run import digest_of


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
