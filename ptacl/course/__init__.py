"From eight notebooks to a workshop of three hours whose answers are checked."
