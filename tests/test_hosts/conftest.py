"""Each host's own warnings, and its folder of images."""
import pytest
from cases import WRITE, need

# Of the hosts' imports and pipelines: deprecated names, and images of noise.
IGNORED = ('ignore::DeprecationWarning', 'ignore::FutureWarning',
           'ignore::UserWarning', 'ignore::SyntaxWarning',
           'ignore::ResourceWarning', 'ignore::RuntimeWarning')


def pytest_collection_modifyitems(items):
    for item in items:
        if 'test_hosts' in str(item.path):
            for text in IGNORED:
                item.add_marker(pytest.mark.filterwarnings(text))


@pytest.fixture(scope='session')
def folder_of(tmp_path_factory):
    """The folder of images that a host reads."""
    made = {}

    def get(host):
        need(host)
        if host not in made:
            made[host] = tmp_path_factory.mktemp(host)
            WRITE[host](made[host])
        return made[host]

    return get
