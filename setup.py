"Package metadata for pip, read from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class WithSessions(build_py):
    "Takes the sessions of the course along: an installed kit has no nbs folder."
    def run(self):
        super().run()
        if self.editable_mode:
            return
        for session in sorted(Path("nbs/workshop").glob("*.ipynb")):
            self.mkpath(f"{self.build_lib}/ptacl/sessions")
            self.copy_file(str(session), f"{self.build_lib}/ptacl/sessions/{session.name}")


parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
names = ("app", "course", "cluster", "export", "formats")
extras = {name: cfg[f"{name}_requirements"].split() for name in names}
# tests use all of them
extras["dev"] = [*cfg["dev_requirements"].split(), *(r for wanted in extras.values() for r in wanted)]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=find_packages(include=["ptacl", "ptacl.*"]),
    package_data={"ptacl": ["py.typed", "models/*/*", "page/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["ptacl=ptacl._modidx:d"]},
    cmdclass={"build_py": WithSessions},
    zip_safe=False,
)
