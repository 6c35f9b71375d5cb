DROP TABLE derived.usage_cursor;
DROP TABLE derived.usage;
DROP VIEW derived.entries;
