"From raw ECGs and cines to clean, normalised, phased and augmented ones."
