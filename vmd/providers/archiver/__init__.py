"""The program that puts a workspace's files into an archive and takes them out again."""
