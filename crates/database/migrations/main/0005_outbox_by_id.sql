-- Old ones are found by their ids, which are as old as they are: noting that an event is published changes an index less.
DROP INDEX outbox_published_at_idx;
