"""What mkdocs does beside its own: the figures of configs/ are of the site."""
from pathlib import Path

from mkdocs.structure.files import File

FIGURES = 'configs/figures'


def on_files(files, config):
    root = Path(config.config_file_path).parent
    for figure in sorted((root / FIGURES).glob('*.png')):
        files.append(File.generated(
            config, f'figures/{figure.name}', abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown, **_):
    """The pages name them by the paths that they have in the repository."""
    return markdown.replace(f'(../{FIGURES}/', '(figures/')
