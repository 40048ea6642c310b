"From a model and pairs to a trained model, on one process or many."
