"From a seed to virtual patients whose physiology is known, and to the files that a biobank would send of them."
