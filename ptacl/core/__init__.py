"From what every part of the kit relies on (errors, presets, files, devices, processes) to one place for each of it."
