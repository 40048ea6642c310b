"From a question to an executed notebook whose numbers can be trusted later."
