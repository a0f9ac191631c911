-- About 300,000 rows for plans/retail.sql, the same ones every time: all values are computed from the row number.
-- Run it as a superuser: rows refer to each other by construction, so foreign key triggers are switched off.

SET session_replication_role = replica;

INSERT INTO "Customers" ("Id", "Email", "FullName", "CreatedAt")
SELECT i, 'customer' || i || '@example.com', 'Customer ' || i, timestamptz '2024-01-01Z' + i * interval '37 minutes'
FROM generate_series(1, 8000) i;

INSERT INTO "Categories" ("Id", "ParentId", "Name", "Slug")
SELECT i, CASE WHEN i > 8 THEN 1 + i % 8 END, 'Category ' || i, 'category-' || i
FROM generate_series(1, 64) i;

-- One product in ten has a page of about 10 kB that does not compress, so PostgreSQL stores it out of line.
INSERT INTO "Products" ("Id", "Sku", "CategoryId", "Name", "Description", "Price", "Tags", "Attributes", "LegacyErpCode", "IsActive", "CreatedAt")
SELECT i, 'SKU-' || lpad(i::text, 6, '0'), 1 + i % 64, 'Product ' || i,
       CASE WHEN i % 10 = 0
            THEN (SELECT string_agg(md5(i || '/' || n), ' ') FROM generate_series(1, 300) n)
            ELSE 'A fine product, number ' || i END,
       (1 + i * 7919 % 50000)::numeric / 100,
       ARRAY['tag' || i % 17, 'tag' || i % 23],
       jsonb_build_object('weight_g', i * 31 % 5000, 'color', (ARRAY['red', 'green', 'blue'])[1 + i % 3]),
       'ERP' || i, i % 50 <> 0, timestamptz '2024-01-01Z' + i * interval '1 hour'
FROM generate_series(1, 6000) i;

INSERT INTO "ProductImages" ("ProductId", "Position", "Url")
SELECT 1 + i % 6000, i / 6000, 'https://images.example.com/' || md5(i::text) || '.jpg'
FROM generate_series(0, 17999) i;

INSERT INTO "InventoryItems" ("Id", "ProductId", "Warehouse", "OnHand", "Reserved")
SELECT i, 1 + (i - 1) / 2, (ARRAY['north', 'south'])[1 + i % 2], 1000 + i * 13 % 900, i % 5
FROM generate_series(1, 12000) i;

INSERT INTO "Orders" ("Id", "OrderNumber", "CustomerId", "Email", "Status", "ShippingAddress", "Total", "Notes", "PlacedAt")
SELECT i, md5('order' || i)::uuid, 1 + i * 31 % 8000, 'customer' || 1 + i * 31 % 8000 || '@example.com',
       (ARRAY['Pending', 'Paid', 'Shipped', 'Delivered', 'Delivered', 'Cancelled'])[1 + i % 6]::"OrderStatus",
       jsonb_build_object('street', i % 200 || ' High Street', 'city', 'Town ' || i % 90, 'country', 'DE'),
       (1000 + i * 7919 % 90000)::numeric / 100, CASE WHEN i % 7 = 0 THEN 'Leave at the door' END,
       timestamptz '2024-06-01Z' + i * interval '13 minutes'
FROM generate_series(1, 30000) i;

INSERT INTO "OrderLines" ("OrderId", "ProductId", "Sku", "Name", "UnitPrice", "Quantity")
SELECT 1 + i % 30000, p, 'SKU-' || lpad(p::text, 6, '0'), 'Product ' || p, (1 + p * 7919 % 50000)::numeric / 100, 1 + i % 4
FROM (SELECT i, 1 + i * 17 % 6000 AS p FROM generate_series(1, 80000) i) line;

INSERT INTO "StockMovements" ("InventoryItemId", "OrderId", "Quantity", "Reason", "At")
SELECT 1 + i * 29 % 12000, CASE WHEN i % 3 > 0 THEN 1 + i % 30000 END, i % 40 - 20,
       (ARRAY['recount', 'sale', 'sale'])[1 + i % 3], timestamptz '2024-06-01Z' + i * interval '9 minutes'
FROM generate_series(1, 40000) i;

INSERT INTO "Carts" ("Id", "CustomerId", "UpdatedAt", "ExpiresAt")
SELECT md5('cart' || i)::uuid, CASE WHEN i % 4 > 0 THEN 1 + i * 11 % 8000 END,
       timestamptz '2025-01-01Z' + i * interval '1 minute', timestamptz '2025-01-15Z' + i * interval '1 minute'
FROM generate_series(1, 9000) i;

INSERT INTO "CartLines" ("CartId", "ProductId", "UnitPrice", "Quantity")
SELECT md5('cart' || 1 + i % 9000)::uuid, 1 + (i % 9000 * 3 + i / 9000 * 701) % 6000, (1 + i * 97 % 50000)::numeric / 100, 1 + i % 3
FROM generate_series(0, 17999) i;

INSERT INTO "CheckoutSagas" ("Id", "CartId", "OrderId", "State", "Context", "StartedAt", "CompletedAt")
SELECT md5('saga' || i)::uuid, NULL, i, CASE WHEN i % 20 = 0 THEN 'Compensated' ELSE 'Completed' END,
       jsonb_build_object('channel', (ARRAY['web', 'app'])[1 + i % 2]),
       timestamptz '2024-06-01Z' + i * interval '13 minutes', timestamptz '2024-06-01Z' + i * interval '13 minutes' + interval '8 s'
FROM generate_series(1, 10000) i;

INSERT INTO "CheckoutSteps" ("SagaId", "Step", "Name", "At")
SELECT md5('saga' || 1 + i / 3)::uuid, 1 + i % 3, (ARRAY['ReserveStock', 'CreateOrder', 'TakePayment'])[1 + i % 3],
       timestamptz '2024-06-01Z' + i * interval '4 minutes'
FROM generate_series(0, 29999) i;

INSERT INTO "Payments" ("Id", "OrderId", "IdempotencyKey", "Amount", "Status", "CardLastFour", "CreatedAt")
SELECT i, i, md5('payment' || i)::uuid, (1000 + i * 7919 % 90000)::numeric / 100,
       (ARRAY['Captured', 'Captured', 'Captured', 'Refunded'])[1 + i % 4]::"PaymentStatus",
       lpad((i * 7919 % 10000)::text, 4, '0'), timestamptz '2024-06-01Z' + i * interval '13 minutes'
FROM generate_series(1, 25000) i;

INSERT INTO "PaymentAttempts" ("PaymentId", "Attempt", "Succeeded", "GatewayAnswer", "At")
SELECT 1 + i % 25000, 1 + i / 25000, i >= 3000, jsonb_build_object('code', i % 3),
       timestamptz '2024-06-01Z' + i * interval '12 minutes'
FROM generate_series(0, 27999) i;

INSERT INTO "Reviews" ("ProductId", "CustomerId", "Stars", "Comment")
SELECT 1 + i * 7 % 6000, 1 + i * 3 % 8000, 1 + i % 5, CASE WHEN i % 2 = 0 THEN 'Review ' || i END
FROM generate_series(1, 6000) i;

INSERT INTO "AuditLog" ("Entity", "EntityId", "Action", "At")
SELECT (ARRAY['Orders', 'Products'])[1 + i % 2], (i % 5000)::text, 'Updated', timestamptz '2024-06-01Z' + i * interval '5 minutes'
FROM generate_series(1, 8000) i;

-- Ids were written by hand, so the sequences follow them.
SELECT setval(pg_get_serial_sequence(format('%I', t), 'Id'), n)
FROM (VALUES ('Customers', 8000), ('Categories', 64), ('Products', 6000), ('InventoryItems', 12000), ('Orders', 30000), ('Payments', 25000)) ids (t, n);

RESET session_replication_role;
ANALYZE;
