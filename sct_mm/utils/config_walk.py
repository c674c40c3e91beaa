"""Find in a config, without building it, the types and pipelines it names."""
from collections.abc import Iterator
from typing import Any


def type_name(config: dict) -> str:
    """The name of the ``type`` of a config, without its scope. The type may be
    a class, and ``config`` itself a transform that is built already."""
    kind = config.get('type') if isinstance(config, dict) else type(config)
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]


def pipelines_of(loader: dict) -> list[list]:
    """The pipelines of a data loader's config that make its images: those of
    its data sets, or of what wraps them (``MultiImageMixDataset``). There are
    none of a data set that is built already."""
    return list(_outermost(loader.get('dataset')))


def data_sets_in(dataset: Any) -> Iterator[dict]:
    """The config of a data set and those within it, be they one or several,
    the outermost first."""
    if isinstance(dataset, dict):
        yield dataset
        for child in (dataset.get('dataset'),
                      *(dataset.get('datasets') or ())):
            yield from data_sets_in(child)


def _outermost(dataset: Any) -> Iterator[list]:
    if not isinstance(dataset, dict):
        return
    if dataset.get('pipeline'):
        yield dataset['pipeline']
    else:
        for child in (dataset.get('dataset'),
                      *(dataset.get('datasets') or ())):
            yield from _outermost(child)


def pipelines_in(config: Any, path: tuple = ()) -> Iterator[
        tuple[tuple, list[dict]]]:
    """Each pipeline of a data set's config, also within wrappers, with the
    path of attributes and indices that leads to its data set.

    Raises:
        ValueError: for a data set without a pipeline.
    """
    inner = config if isinstance(config, dict) else {}
    if inner.get('pipeline') is not None:
        yield path, inner['pipeline']
    elif inner.get('datasets'):
        for index, child in enumerate(inner['datasets']):
            yield from pipelines_in(child, (*path, 'datasets', index))
    elif 'dataset' in inner:
        yield from pipelines_in(inner['dataset'], (*path, 'dataset'))
    else:
        raise ValueError('A data set that is tested at several sizes must be '
                         'a config with a `pipeline`, or wrap such ones, but '
                         f'got {type_name(inner) or type(config).__name__}. '
                         'Set its `pipeline`.')


def host_model(model: dict) -> dict:
    """The config of the host's model, which ``WithSSBN`` wraps."""
    while type_name(model) == 'WithSSBN' and isinstance(model.get('model'),
                                                        dict):
        model = model['model']
    return model


# Of mmaction2: read a file, named or not, unless `pretrained2d` is False.
_READ_2D = ('ResNetTSM', 'ResNetTIN', 'MobileNetV2TSM', 'MobileOneTSM',
            'UniFormer')


def without_pretrained(model: Any) -> Any:
    """A copy of the config ``model`` that loads no file as it is initialised:
    for a network whose checkpoint (``load_from``) has all weights, so that
    the file need not be there."""
    if isinstance(model, (list, tuple)):
        return type(model)(map(without_pretrained, model))
    if not isinstance(model, dict):
        return model
    copy = {name: without_pretrained(value) for name, value in model.items()}
    if isinstance(copy.get('pretrained'), str):  # mmseg, mmaction2
        copy['pretrained'] = None
    if type_name(copy) in _READ_2D or 'pretrained2d' in copy:
        copy['pretrained2d'] = False
    init: Any = copy.get('init_cfg')
    if isinstance(init, dict) and type_name(init) == 'Pretrained':
        copy['init_cfg'] = None
    elif isinstance(init, (list, tuple)):
        copy['init_cfg'] = [each for each in init
                            if type_name(each) != 'Pretrained']
    return copy
