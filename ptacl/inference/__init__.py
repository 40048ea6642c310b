"From files of ECGs and a trained model to features, phenotypes and a program that runs elsewhere."
