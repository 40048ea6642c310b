"From a machine to how fast every part of the kit runs on it."
