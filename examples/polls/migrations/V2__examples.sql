-- Something to look at. The last question is not to be seen before its day.
insert into questions (text, pub_date) values
    ('Which season do you like best?', '2026-03-20T09:00:00.000000Z'),
    ('What do you drink first in the morning?', '2026-06-01T07:30:00.000000Z'),
    ('How do you get to work?', '2026-09-14T08:15:00.000000Z'),
    ('Has the new century kept its promises?', '2100-01-01T00:00:00.000000Z');

insert into choices (question_id, text) select id, 'Spring' from questions where text like 'Which season%';
insert into choices (question_id, text) select id, 'Summer' from questions where text like 'Which season%';
insert into choices (question_id, text) select id, 'Autumn' from questions where text like 'Which season%';
insert into choices (question_id, text) select id, 'Winter' from questions where text like 'Which season%';
insert into choices (question_id, text) select id, 'Coffee' from questions where text like 'What do you drink%';
insert into choices (question_id, text) select id, 'Tea' from questions where text like 'What do you drink%';
insert into choices (question_id, text) select id, 'Water' from questions where text like 'What do you drink%';
insert into choices (question_id, text) select id, 'By bicycle' from questions where text like 'How do you get%';
insert into choices (question_id, text) select id, 'By train or bus' from questions where text like 'How do you get%';
insert into choices (question_id, text) select id, 'By car' from questions where text like 'How do you get%';
insert into choices (question_id, text) select id, 'From the bed to the desk' from questions where text like 'How do you get%';
insert into choices (question_id, text) select id, 'Yes' from questions where text like 'Has the new%';
insert into choices (question_id, text) select id, 'No' from questions where text like 'Has the new%';
