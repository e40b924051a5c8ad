"""The Lambda: Kinesis records in, DynamoDB items out. This folder, zipped, is the whole deployment."""
