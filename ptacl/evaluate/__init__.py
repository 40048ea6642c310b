"From embeddings and predictions to scores with intervals, alignment maps and boards."
