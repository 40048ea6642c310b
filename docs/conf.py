"Sphinx settings of the site. Nothing on it asks another host: fonts, scripts and formulas are local files."
from configparser import ConfigParser
from pathlib import Path

ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")

project, author = ini["DEFAULT"]["lib_name"], ini["DEFAULT"]["author"]
version = release = ini["DEFAULT"]["version"]
copyright = f"2026, {author}. For research, not for clinical use"
html_title, html_theme = f"{project} {release}", "furo"
html_static_path, html_css_files = ["static"], ["ptacl.css"]
html_show_sphinx, html_copy_source = False, False
html_show_search_summary = True  # from texts.js, since a page opened as a file may fetch nothing

extensions = ["myst_nb"]
highlight_language = "none"  # of blocks that name none: commands and folders
nb_execution_mode = "off"  # the notebooks come executed
nb_ipywidgets_js = {}
nb_merge_streams = True  # lines printed one after the other stand in one box
exclude_patterns = ["notebooks"]  # to be downloaded, not read
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
mathjax_path = "tex-svg.js"  # put there by build.py; one file, no fonts
mathjax3_config = {"options": {"enableMenu": False}}  # its menu would load more


def search_page(app, pagename, templatename, context, doctree):
    "The texts of all pages, for the search page alone."
    if pagename == "search": app.add_js_file("texts.js")


def setup(app):
    app.connect("html-page-context", search_page)
